# A Triton for machines without a GPU: the server of the nvidia-pytriton wheel with an ONNX Runtime backend in Python.
# Clusters with a GPU serve with the official image of docker/versions.env.
ARG PYTHON_IMAGE

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="nightshift-triton-cpu" \
      org.opencontainers.image.description="Triton with ONNX Runtime on the CPU, for development" \
      org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /opt/nightshift
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin nightshift \
 && install -d -o nightshift -g nightshift /models /var/lib/triton \
 && install -d -m 700 -o nightshift -g nightshift /run/triton \
 && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
# The Python backend's stub links to a shared libpython, which some builds of Python leave out.
RUN [ -e /usr/local/lib/libpython3.11.so.1.0 ] || { apt-get update && \
    apt-get install -y --no-install-recommends libpython3.11 && rm -rf /var/lib/apt/lists/*; }
COPY local/__init__.py local/bootstrap.py local/
COPY requirements/uv.txt requirements/sbom.txt requirements/triton.txt requirements/triton-without-dependencies.txt requirements/
COPY docker/sbom.py docker/
RUN --mount=type=cache,target=/root/.cache/uv UV_LINK_MODE=copy python3 -m local.bootstrap triton sbom \
 && mkdir /usr/share/nightshift \
 && .venv/sbom/bin/python docker/sbom.py nightshift-triton-cpu .venv/triton/bin/python > /usr/share/nightshift/sbom.cdx.json \
 && rm -rf .venv/tools .venv/sbom .venv/*/.lock # anyone could write to a lock
COPY --chmod=755 docker/healthy /usr/local/bin/healthy
COPY LICENSE NOTICE ./
COPY local local
COPY nightshift_common/__init__.py nightshift_common/patience.py nightshift_common/storage_tokens.py nightshift_common/
COPY docker/triton_cpu.py docker/triton_cpu.py
USER nightshift
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["healthy", "http://127.0.0.1:8000/v2/health/ready"]
CMD ["python3", "-m", "docker.triton_cpu"]

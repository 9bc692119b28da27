# What trains and evaluates: PyTorch, timm, Lightning. One of CUDA's builds of PyTorch, unless docker/wheels holds another.
ARG PYTHON_IMAGE

FROM ${PYTHON_IMAGE} AS build
WORKDIR /opt/nightshift
ARG TORCH_BACKEND
ENV NIGHTSHIFT_TORCH_BACKEND=${TORCH_BACKEND} UV_LINK_MODE=copy
# Only what the environment is made from, so that code changes do not install it again.
COPY local/__init__.py local/bootstrap.py local/
COPY local/torchvision_cpu local/torchvision_cpu
COPY requirements/uv.txt requirements/jobs.txt requirements/jobs-gpu.txt requirements/jobs-without-dependencies.txt requirements/
COPY requirements/torch.in requirements/torch-cu130.txt requirements/
RUN --mount=type=cache,target=/root/.cache/uv --mount=type=bind,source=docker/wheels,target=/wheels \
    PIP_FIND_LINKS=/wheels python3 -m local.bootstrap jobs
COPY requirements/sbom.txt requirements/
COPY docker/sbom.py docker/
RUN --mount=type=cache,target=/root/.cache/uv python3 -m local.bootstrap sbom \
 && .venv/sbom/bin/python docker/sbom.py nightshift-training .venv/jobs/bin/python > sbom.cdx.json \
 && rm -rf .venv/tools .venv/sbom .venv/*/.lock # anyone could write to a lock

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="nightshift-training" \
      org.opencontainers.image.description="Nightshift's training jobs: python -m training_jobs.<name>" \
      org.opencontainers.image.licenses="Apache-2.0"
# /job is where a job leaves its result; Docker gives a new volume there this owner.
RUN useradd --uid 10001 --no-create-home --home-dir /job/home --shell /usr/sbin/nologin nightshift \
 && install -d -o nightshift -g nightshift /job /job/home /job/tmp /bottle /cache \
 && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
ENV PATH=/opt/nightshift/.venv/jobs/bin:$PATH HOME=/job/home TMPDIR=/job/tmp NIGHTSHIFT_CACHE=/cache \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 MLFLOW_DISABLE_TELEMETRY=true \
    MPLCONFIGDIR=/job/tmp/matplotlib NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/nightshift
COPY --from=build /opt/nightshift/.venv /opt/nightshift/.venv
COPY --from=build /opt/nightshift/sbom.cdx.json /usr/share/nightshift/sbom.cdx.json
COPY LICENSE NOTICE ./
COPY requirements/jobs.txt requirements/jobs.txt
COPY nightshift_common nightshift_common
COPY jobkit jobkit
COPY configs configs
COPY training_jobs training_jobs
RUN python -m compileall -q nightshift_common jobkit training_jobs
ARG NIGHTSHIFT_COMMIT
ENV NIGHTSHIFT_COMMIT=${NIGHTSHIFT_COMMIT}
USER nightshift
HEALTHCHECK NONE
CMD ["python", "-c", "print('say which job: python -m training_jobs.<name> --help')"]

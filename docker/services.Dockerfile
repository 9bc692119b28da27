# The HTTP services: model storage, the collect reference server, MLflow.
ARG PYTHON_IMAGE

FROM ${PYTHON_IMAGE} AS build
WORKDIR /opt/nightshift
ENV UV_LINK_MODE=copy
COPY local/__init__.py local/bootstrap.py local/
COPY requirements/uv.txt requirements/services.txt requirements/
RUN --mount=type=cache,target=/root/.cache/uv python3 -m local.bootstrap services
COPY requirements/sbom.txt requirements/
COPY docker/sbom.py docker/
RUN --mount=type=cache,target=/root/.cache/uv python3 -m local.bootstrap sbom \
 && .venv/sbom/bin/python docker/sbom.py nightshift-services .venv/services/bin/python > sbom.cdx.json \
 && rm -rf .venv/tools .venv/sbom .venv/*/.lock # anyone could write to a lock

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="nightshift-services" \
      org.opencontainers.image.description="Nightshift's services: python -m services.model_storage, services.collect; mlflow" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin nightshift \
 && install -d -o nightshift -g nightshift /models /artifacts /collect /bottle \
 && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
ENV PATH=/opt/nightshift/.venv/services/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MLFLOW_DISABLE_TELEMETRY=true
WORKDIR /opt/nightshift
COPY --from=build /opt/nightshift/.venv /opt/nightshift/.venv
COPY --from=build /opt/nightshift/sbom.cdx.json /usr/share/nightshift/sbom.cdx.json
COPY --chmod=755 docker/healthy /usr/local/bin/healthy
COPY LICENSE NOTICE ./
COPY nightshift_common nightshift_common
COPY services services
RUN python -m compileall -q nightshift_common services
USER nightshift
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["healthy", "http://127.0.0.1:8300/health/ready"]
CMD ["python", "-m", "services.model_storage"]

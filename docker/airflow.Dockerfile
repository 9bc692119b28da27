# Airflow: API server, scheduler, DAG processor, triggerer and workers. Knows when and where jobs run, never torch.
ARG PYTHON_IMAGE

FROM ${PYTHON_IMAGE} AS build
WORKDIR /opt/nightshift
ENV UV_LINK_MODE=copy
COPY local/__init__.py local/bootstrap.py local/
COPY requirements/uv.txt requirements/airflow.txt requirements/
RUN --mount=type=cache,target=/root/.cache/uv python3 -m local.bootstrap airflow
COPY requirements/sbom.txt requirements/
COPY docker/sbom.py docker/
RUN --mount=type=cache,target=/root/.cache/uv python3 -m local.bootstrap sbom \
 && .venv/sbom/bin/python docker/sbom.py nightshift-airflow .venv/airflow/bin/python > sbom.cdx.json \
 && rm -rf .venv/tools .venv/sbom .venv/*/.lock # anyone could write to a lock

FROM ${PYTHON_IMAGE}
ARG AIRFLOW_VERSION
LABEL org.opencontainers.image.title="nightshift-airflow" \
      nightshift.airflow="${AIRFLOW_VERSION}" \
      org.opencontainers.image.description="Nightshift's Airflow with its DAGs and plugins" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin nightshift \
 && install -d -o nightshift -g nightshift /var/lib/nightshift /var/lib/nightshift/airflow /var/lib/nightshift/logs /bottle /cache \
 && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
ENV PATH=/opt/nightshift/.venv/airflow/bin:$PATH PYTHONPATH=/opt/nightshift PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    AIRFLOW_HOME=/var/lib/nightshift/airflow NIGHTSHIFT_HOME=/opt/nightshift NIGHTSHIFT_STATE=/var/lib/nightshift \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/nightshift/dags AIRFLOW__CORE__PLUGINS_FOLDER=/opt/nightshift/plugins \
    AIRFLOW__CORE__LOAD_EXAMPLES=False AIRFLOW__LOGGING__BASE_LOG_FOLDER=/var/lib/nightshift/logs \
    AIRFLOW__USAGE_DATA_COLLECTION__ENABLED=False
WORKDIR /opt/nightshift
COPY --from=build /opt/nightshift/.venv /opt/nightshift/.venv
COPY --from=build /opt/nightshift/sbom.cdx.json /usr/share/nightshift/sbom.cdx.json
COPY --chmod=755 docker/healthy /usr/local/bin/healthy
COPY LICENSE NOTICE ./
COPY configs configs
COPY plugins plugins
COPY dags dags
COPY nightshift_common nightshift_common
RUN python -m compileall -q plugins dags nightshift_common
USER nightshift
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["healthy", "http://127.0.0.1:8080/api/v2/version"]
CMD ["airflow", "version"]

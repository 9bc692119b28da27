# What exports, verifies, packages, publishes and deploys. Two variants of one image:
#   --target cpu       on the training image: everything but TensorRT plans
#   --target tensorrt  on the TensorRT image of docker/versions.env: builds and verifies plans on the GPU that serves them
ARG TRAINING_IMAGE
ARG TENSORRT_IMAGE

FROM ${TRAINING_IMAGE} AS cpu
LABEL org.opencontainers.image.title="nightshift-conversion" \
      org.opencontainers.image.description="Nightshift's conversion jobs: python -m conversion_jobs.<name>" \
      org.opencontainers.image.licenses="Apache-2.0"
USER root
COPY conversion_jobs conversion_jobs
RUN python -m compileall -q conversion_jobs \
 && sed -i 's/"nightshift-training"/"nightshift-conversion"/' /usr/share/nightshift/sbom.cdx.json # which adds no package
ARG NIGHTSHIFT_COMMIT
ENV NIGHTSHIFT_COMMIT=${NIGHTSHIFT_COMMIT}
USER nightshift

FROM ${TENSORRT_IMAGE} AS tensorrt
ARG TORCH_BACKEND
LABEL org.opencontainers.image.title="nightshift-tensorrt" \
      org.opencontainers.image.description="Nightshift's TensorRT jobs: build_plan and verify_plan, with trtexec" \
      org.opencontainers.image.licenses="Apache-2.0 AND LicenseRef-NVIDIA-Deep-Learning-Container"
RUN useradd --uid 10001 --no-create-home --home-dir /job/home --shell /usr/sbin/nologin nightshift \
 && install -d -o nightshift -g nightshift /job /job/home /job/tmp /bottle /cache \
 && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
WORKDIR /opt/nightshift
COPY local/__init__.py local/bootstrap.py local/
COPY local/torchvision_cpu local/torchvision_cpu
COPY requirements/uv.txt requirements/sbom.txt requirements/jobs.txt requirements/jobs-without-dependencies.txt requirements/
COPY requirements/torch.in requirements/torch-cu130.txt requirements/
COPY docker/sbom.py docker/
# The jobs are locked for Python 3.11; uv fetches one where the image has another.
RUN --mount=type=cache,target=/root/.cache/uv --mount=type=bind,source=docker/wheels,target=/wheels \
    python3 -m pip install --quiet --no-cache-dir --require-hashes --requirement requirements/uv.txt \
 && UV_PYTHON_INSTALL_DIR=/opt/python uv python install 3.11 \
 && NIGHTSHIFT_TORCH_BACKEND=${TORCH_BACKEND} PIP_FIND_LINKS=/wheels UV_LINK_MODE=copy \
    "$(UV_PYTHON_INSTALL_DIR=/opt/python uv python find 3.11)" -m local.bootstrap jobs sbom && mkdir /usr/share/nightshift \
 && .venv/sbom/bin/python docker/sbom.py nightshift-tensorrt .venv/jobs/bin/python /usr/bin/python3 \
    > /usr/share/nightshift/sbom.cdx.json \
 && rm -rf .venv/tools .venv/sbom .venv/*/.lock
ENV PATH=/opt/nightshift/.venv/jobs/bin:/opt/tensorrt/bin:/usr/src/tensorrt/bin:$PATH HOME=/job/home \
    TMPDIR=/job/tmp NIGHTSHIFT_CACHE=/cache PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MLFLOW_DISABLE_TELEMETRY=true NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY LICENSE NOTICE ./
COPY nightshift_common nightshift_common
COPY jobkit jobkit
COPY configs configs
COPY conversion_jobs conversion_jobs
RUN python -m compileall -q nightshift_common jobkit conversion_jobs
ARG NIGHTSHIFT_COMMIT
ENV NIGHTSHIFT_COMMIT=${NIGHTSHIFT_COMMIT}
USER nightshift
HEALTHCHECK NONE
# The base image's entry point prints a banner, which is no log line of a job.
ENTRYPOINT []
CMD ["python", "-c", "print('say which job: python -m conversion_jobs.<name> --help')"]

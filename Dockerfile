# One image for all commands: `serve`, `edge`, `db upgrade` and the rest. docs/deployment.md shows how to build it.
# Pin the base by its digest: --build-arg PYTHON_IMAGE=python:3.13-slim-bookworm@sha256:…
ARG PYTHON_IMAGE=python:3.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ONLY_BINARY=:all:
WORKDIR /build
COPY requirements-runtime.txt requirements-build.txt requirements-docs.txt ./
# The environment that is copied has no pip. That of the tools stays in this stage.
RUN python -m venv --without-pip /opt/ordernumbers \
 && pip --python /opt/ordernumbers/bin/python install --require-hashes -r requirements-runtime.txt \
 && pip --python /opt/ordernumbers/bin/python install --require-hashes --no-deps -r requirements-docs.txt \
 && python -m venv /tools \
 && /tools/bin/pip install --require-hashes -r requirements-build.txt
COPY pyproject.toml README.md LICENSE ./
COPY envoy envoy
COPY gen gen
COPY server server
RUN /tools/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /wheels . \
 && pip --python /opt/ordernumbers/bin/python install --no-index --no-deps /wheels/*.whl

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin ordernumbers \
 && install --directory --owner=10001 --group=10001 --mode=0700 /data
COPY --from=build /opt/ordernumbers /opt/ordernumbers
ENV PATH=/opt/ordernumbers/bin:$PATH ORDERNUMBERS_DATA_DIR=/data
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
EXPOSE 8080 50051 9463 9464
ENTRYPOINT ["ordernumbers"]
CMD ["--help"]

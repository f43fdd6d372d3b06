FROM python:3.13-slim AS build
WORKDIR /src
RUN pip install --no-cache-dir build==1.6.1
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY sql sql
COPY src src
RUN python -m build --wheel --outdir /dist
# The venv holds the wheel and its pinned dependencies; no pip, no compiler and no source go into the image.
RUN python -m venv --without-pip /opt/llmqueue \
 && pip --python /opt/llmqueue/bin/python install --no-cache-dir --constraint constraints.txt /dist/llmqueue-*.whl


FROM python:3.13-slim
# A fixed uid, so that volumes and Kubernetes' runAsUser agree with it. The folder keeps the answers that a worker
# has while its database is away.
RUN groupadd --gid 10001 llmqueue \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/llmqueue --shell /usr/sbin/nologin llmqueue \
 && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/llmqueue
COPY --from=build /opt/llmqueue /opt/llmqueue
ENV PATH=/opt/llmqueue/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LLMQUEUE_HOME=/var/lib/llmqueue \
    LLMQUEUE_LOG_FORMAT=json
USER 10001:10001
WORKDIR /var/lib/llmqueue

# Asks whether the database answers and the schema fits. A worker outlives a database that is away, so this marks a
# container as unhealthy; it must not be made a reason to kill it.
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s --retries=3 CMD ["llmqueue", "status", "--json"]

STOPSIGNAL SIGTERM
ENTRYPOINT ["llmqueue"]
CMD ["worker"]

# Two stages: the first installs into a virtual environment, the second carries it without compilers or caches.
FROM python:3.11-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
RUN python3 -m venv /opt/recurra
COPY pyproject.toml README.md LICENSE NOTICE ./
# Dependencies first: they change less often than the code, and this layer is the large one.
RUN /opt/recurra/bin/python -c "import tomllib; print('\n'.join(tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']))" > requirements.txt \
 && /opt/recurra/bin/pip install --no-cache-dir --disable-pip-version-check -r requirements.txt
COPY model model
COPY service service
RUN /opt/recurra/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps .

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /app recurra
COPY --from=build /opt/recurra /opt/recurra
WORKDIR /app
# Versions are published and promoted into the one, data and jobs kept in the other: both are the service's own.
RUN mkdir checkpoints data && chown recurra: checkpoints data
COPY --chown=recurra:recurra checkpoints checkpoints
ENV PATH=/opt/recurra/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RECURRA_HOST=0.0.0.0 \
    RECURRA_PORT=8000 \
    RECURRA_CHECKPOINTS=/app/checkpoints \
    RECURRA_DATA=/app/data
USER recurra
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, httpx; httpx.get(f\"http://127.0.0.1:{os.environ['RECURRA_PORT']}/health/ready\").raise_for_status()"]
CMD ["recurra", "serve"]

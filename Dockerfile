# One image for every process of the service; docker-compose.yml says which one a container runs.

FROM python:3.11-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /source
# What we need first and alone: some 3 GB that a change of our own code shall not install again.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], *project['optional-dependencies']['server'], sep='\n')" > requirements.txt \
 && pip install --constraint constraints.txt --requirement requirements.txt
COPY README.md ./
COPY api api
COPY worker worker
COPY bpt_core bpt_core
COPY bpt_store bpt_store
COPY bpt_client bpt_client
COPY migrations migrations
RUN pip install --no-deps . && pip check

FROM python:3.11-slim
RUN useradd --uid 10001 --create-home bpt \
 && install --directory --owner=bpt --group=bpt --mode=750 /objects /work /hub /weights
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /home/bpt
EXPOSE 8000
CMD ["uvicorn", "--factory", "api.app:create_app", "--host", "0.0.0.0", "--port", "8000", "--no-access-log", "--timeout-graceful-shutdown", "10"]

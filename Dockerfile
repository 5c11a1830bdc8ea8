# The images of the compose stack: `setup`, `dashboard` (without torch) and `worker`, each a target.
# A builder that makes all stages down to its target one after the other needs none for nothing but those above it.
ARG PYTHON_IMAGE=python:3.12-slim

FROM ${PYTHON_IMAGE} AS setup
COPY docker/first_run.py /usr/local/lib/first_run.py
RUN chmod 644 /usr/local/lib/first_run.py
USER 1000:1000
ENTRYPOINT ["python3", "/usr/local/lib/first_run.py"]


# The project as a wheel, and which commit it is of. No image that runs has git or anything of .git.
FROM ${PYTHON_IMAGE} AS project
RUN apt-get update -qq \
 && apt-get install -qq --no-install-recommends git >/dev/null \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
ARG GIT_COMMIT=
ARG GIT_DIRTY=
RUN mkdir /built \
 && sh docker/built_from.sh >/built/built_from.json \
 && python3 -m pip wheel --quiet --no-cache-dir --no-deps --wheel-dir /built .


# What to install, apart from what else changes in pyproject.toml: libraries are installed again when one of them changes only.
FROM ${PYTHON_IMAGE} AS requirements
WORKDIR /requirements
COPY pyproject.toml constraints.txt ./
RUN python3 -c "import pathlib, tomllib; declared = tomllib.loads(pathlib.Path('pyproject.toml').read_text()); \
    project = declared['project']; \
    pathlib.Path('worker.txt').write_text('\n'.join(project['dependencies'] + project['optional-dependencies']['s3'])); \
    pathlib.Path('dashboard.txt').write_text('\n'.join(declared['dependency-groups']['dashboard']))"


# Any user may run it, also one that /etc/passwd does not know: HOST_USER in .env.
FROM ${PYTHON_IMAGE} AS runtime
RUN mkdir --mode=1777 /home/mammography
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/home/mammography \
    USER=mammography \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_WAIT_POLICY=PASSIVE \
    GOMP_SPINCOUNT=0 \
    MAMMOGRAPHY_OUTPUTS=/outputs
WORKDIR /home/mammography


FROM ${PYTHON_IMAGE} AS dashboard-libraries
RUN python3 -m venv /opt/venv
COPY --from=requirements /requirements/dashboard.txt /requirements/constraints.txt /requirements/
RUN /opt/venv/bin/python -m pip install --quiet --no-cache-dir \
    --constraint /requirements/constraints.txt --requirement /requirements/dashboard.txt

FROM runtime AS dashboard
COPY --from=dashboard-libraries /opt/venv /opt/venv
COPY --from=project /built /built
RUN python -m pip install --quiet --no-cache-dir --no-deps --no-index /built/*.whl \
 && cp /built/built_from.json "$(python -c 'import trainer; print(*trainer.__path__)')"
USER 1000:1000
EXPOSE 8080
ENTRYPOINT ["mammography"]
CMD ["dashboard", "--host", "0.0.0.0"]


FROM ${PYTHON_IMAGE} AS worker-libraries
RUN python3 -m venv /opt/venv
COPY --from=requirements /requirements/worker.txt /requirements/constraints.txt /requirements/
RUN /opt/venv/bin/python -m pip install --quiet --no-cache-dir \
    --constraint /requirements/constraints.txt --requirement /requirements/worker.txt

FROM runtime AS worker
COPY --from=worker-libraries /opt/venv /opt/venv
COPY --from=project /built /built
RUN python -m pip install --quiet --no-cache-dir --no-deps --no-index /built/*.whl \
 && cp /built/built_from.json "$(python -c 'import trainer; print(*trainer.__path__)')"
USER 1000:1000
ENTRYPOINT ["mammography"]
CMD ["--help"]

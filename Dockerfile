# One image for worker, API and the one-shot `tally init`: docker build -t tallystream .
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE tally.py ./
COPY pipeline pipeline
COPY producers producers
COPY consumers consumers
COPY sql sql
# The wheel is what is installed, so that the image holds exactly what a release does.
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python -m venv /opt/tally \
    && /opt/tally/bin/pip install --no-cache-dir --constraint constraints.txt "$(ls /wheels/*.whl)[server]"

FROM python:3.11-slim
# /var/lib/tally holds the dedup table's cache: each worker needs one of its own, and may lose it.
RUN useradd --system --uid 10001 --home-dir /var/lib/tally --create-home tally
COPY --from=build /opt/tally /opt/tally
ENV PATH=/opt/tally/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TZ=UTC \
    TALLY_HOME=/var/lib/tally \
    TALLY_API_HOST=0.0.0.0 \
    TALLY_LOG_JSON=true
USER tally
WORKDIR /var/lib/tally
VOLUME /var/lib/tally
EXPOSE 8080 6066 6067
ENTRYPOINT ["tally"]
CMD ["--help"]

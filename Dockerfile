# lacuna-nipype with MRtrix3 on Debian slim.
#
#   docker build -t lacuna-nipype .
#   docker run --rm -u "$(id -u):$(id -g)" \
#       -v /data/lesions:/data:ro -v /data/lesions-lacuna:/out -v /scratch:/work \
#       -v ~/.cache/templateflow:/templateflow -v ~/.cache/lacuna:/lacuna-data \
#       lacuna-nipype /data /out participant --functional-connectome GSP1000 -w /work
#
# TEMPLATEFLOW_HOME (/templateflow): templates and the transforms between them.
# LACUNA_DATA_DIR (/lacuna-data): fetched and registered connectomes and atlases.
# Both are open to every user. Mount folders of the host there to keep what is fetched; what a
# registered connectome points to must be mounted under the path that it was registered with.
# Keys for downloads come with `-e DATAVERSE_API_KEY` and `-e FIGSHARE_API_KEY`, never in an image.
#
# Checked: every RUN and COPY below was carried out in Debian bookworm made by debootstrap, in the
# order given, and the command then ran the demonstration there as the user lacuna and as a user
# without a home. Not checked: `docker build` itself (no daemon was at hand), other architectures.

FROM debian:bookworm-slim AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md LICENSE /src/
COPY lacuna_nipype /src/lacuna_nipype
RUN python3 -m venv /opt/lacuna \
    && /opt/lacuna/bin/python -m pip install --no-cache-dir /src

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="lacuna-nipype" \
      org.opencontainers.image.description="Lesion network mapping: regional damage, functional network maps and structural disconnection of lesions in BIDS" \
      org.opencontainers.image.licenses="Apache-2.0"
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates mrtrix3 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --no-create-home --home-dir /home/lacuna lacuna \
    && install -d -m 1777 /home/lacuna /templateflow /lacuna-data
COPY --from=build /opt/lacuna /opt/lacuna
# HOME holds for users without a name too, whom `-u` makes.
ENV HOME=/home/lacuna \
    LACUNA_DATA_DIR=/lacuna-data \
    PATH=/opt/lacuna/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    TEMPLATEFLOW_HOME=/templateflow
USER lacuna
WORKDIR /home/lacuna
ENTRYPOINT ["/opt/lacuna/bin/lacuna-nipype"]
CMD ["--help"]

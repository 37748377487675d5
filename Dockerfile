# The project with its environment. In a clone, `docker build -t stackseg .` and `docker run --rm stackseg` do what `make run` does.
# Unverified: it was written without a Docker engine at hand. No GPU: for one, take an image with its libraries.
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends git make curl && rm -rf /var/lib/apt/lists/*
WORKDIR /project
COPY . .
# DVC and the lineage of runs read the repository, which belongs to somebody else in here
RUN git config --global --add safe.directory /project
RUN make .venv/bin/.installed
EXPOSE 5000 5001
CMD ["make", "run"]

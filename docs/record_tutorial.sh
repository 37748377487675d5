#!/usr/bin/env bash
# Run the tutorial for real and keep what it prints in docs/recorded/, from where docs/tutorial.md includes it.
#
#   docs/record_tutorial.sh PROJECT IMAGES MASKS
#
# PROJECT is a fresh clone of this repository, which the run changes. IMAGES and MASKS are the nuclei of the tutorial:
# a stack of independent fields of view, and masks of 0 and 255 (or 0 and 1). It takes about five minutes on two cores.
# Afterwards draw the pictures, of the first run:
#
#   (cd PROJECT && git checkout dvc.lock params.yaml && dvc checkout)
#   python docs/make_pictures.py PROJECT --name nuclei
set -euo pipefail
project=$1 images=$(realpath "$2") masks=$(realpath "$3")
recorded=$(realpath "$(dirname "$0")")/recorded
mkdir -p "$recorded"
cd "$project"
export COLUMNS=88 DVC_NO_ANALYTICS=1 MLFLOW_DISABLE_TELEMETRY=true NO_ALBUMENTATIONS_UPDATE=1
cp "$images" my_images.tif
cp "$masks" my_masks.tif

# Keep the output of a command, without blanks at the ends of lines and without repeated empty lines.
record() {
    local name=$1
    shift
    printf '%s\n' "recording $name: $*" >&2
    "$@" 2>&1 | tr '\r' '\n' | sed -e 's/\x1b\[[0-9;?]*[A-Za-z]//g' -e 's/[[:space:]]*$//' | cat -s > "$recorded/$name.txt"
}

record add stackseg add my_images.tif my_masks.tif --name nuclei
python - <<'P'
from pathlib import Path
from stackseg.params.file import read_params, write_values

file = Path("params.yaml")
first, second = (one.model_dump() for one in read_params(file).data.classes)
write_values(
    file,
    {
        "data.classes": [first | {"name": "background"}, second | {"name": "nucleus"}],
        "train.epochs": 4,
    },
)
P
record check stackseg check
git add --all . && git -c user.name=tutorial -c user.email=tutorial@example.org commit -q -m "nuclei"
record repro dvc repro
record metrics dvc metrics show --md
record promote stackseg promote
git add --all && git -c user.name=tutorial -c user.email=tutorial@example.org commit -q -m "first run"
record experiment dvc exp run -S train.epochs=1
record gate bash -c 'stackseg promote; echo "exit code $?"'
record models stackseg models
record predict stackseg predict my_images.tif my_prediction.tif

python -c 'import tifffile; tifffile.imwrite("plane.tif", tifffile.imread("my_images.tif", key=4))'
stackseg serve --port 5001 > serve.log 2>&1 &
server=$!
trap 'kill $server' EXIT
until python -c 'import urllib.request as u; u.urlopen("http://127.0.0.1:5001/ping")' 2> /dev/null; do sleep 1; done
request() {
    printf '{"dataframe_split": {"columns": ["image"], "data": [["%s"]]}, "params": {"output": "png"}}' \
        "$(base64 < plane.tif | tr -d '\n')" |
        curl -s http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' -d @-
}
request > answer.json
record answer python -c 'import json
answer = json.load(open("answer.json"))["predictions"][0]
answer["mask"] = answer["mask"][:32] + "…"
print(json.dumps(answer, indent=2, ensure_ascii=False))'
record remote stackseg segment-remote http://127.0.0.1:5001 plane.tif plane_mask.tif

"""The run of a model that no training of this project made: an ensemble, or one from elsewhere."""

from __future__ import annotations

from pathlib import Path

from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

from stackseg.dataset.records import Catalog
from stackseg.errors import DataError
from stackseg.model.bundle import BundleSpec
from stackseg.tracking.lineage import GitState
from stackseg.tracking.run_logger import RunRecord, lineage_tags, write_run


def require_unseen_test_part(spec: BundleSpec, catalog: Catalog, where: str) -> None:
    """Refuse a model that has seen planes of the test part: its score there would flatter.

    Raises
    ------
    DataError
        It has; the number is told.
    """
    seen = {*spec.seen.training, *spec.seen.validation, *spec.seen.gap}
    planes = [plane for _, plane in catalog.planes("test")]
    found = sum(not plane.constant and plane.image_sha256 in seen for plane in planes)
    if found:
        raise DataError(
            f"it has seen {found} of the {len(planes)} test planes",
            expected="planes that are new to it, or the scores would flatter",
            where=where,
            remedy="name new planes by split.method: explicit, and run `dvc repro catalog`",
        )


def adopt(
    spec: BundleSpec, catalog: Catalog, out: Path, *, experiment: tuple[str, str], git: GitState, made_by: str
) -> RunRecord:
    """Open and close a run for a bundle, and write run.json into `out`, so that it can be scored and registered.

    Parameters
    ----------
    spec, catalog
        The bundle, and the data set on which it is to be scored.
    experiment
        Name and id.
    made_by
        What made it, for the run's name.
    """
    name, experiment_id = experiment
    tags = lineage_tags(git) | {
        MLFLOW_RUN_NAME: f"{made_by} · {git.short}" if git.short else made_by,
        "made_by": made_by,
        "bundle_digest": spec.digest,
        "data_md5": catalog.data_md5,
        "catalog_digest": catalog.digest(),
    }
    client = MlflowClient()
    run_id = client.create_run(experiment_id, tags=tags).info.run_id
    for place, member in enumerate(spec.lineage.members):
        client.log_param(run_id, f"member.{place}", f"{member}, bundle {member.digest[:12]}")
    client.set_terminated(run_id)
    record = RunRecord(run_id=run_id, experiment=name, bundle_digest=spec.digest, catalog_digest=catalog.digest())
    write_run(out / "run.json", record)
    return record

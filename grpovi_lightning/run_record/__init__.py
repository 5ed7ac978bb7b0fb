"""What a run and a study leave on disk, and how it is read back: the contract between running and `analysis`.

    <study>/study.yaml                 the study as resolved: a study file plus the contents of its config files
    <study>/prepare/<stage>/           what all arms share; a run each, or the files of the task
    <study>/arms/<arm>/seed_<k>/       a run: status.json, process.log, config.yaml, events, checkpoints/, model/
    <study>/report/                    index.html, efficiency.csv, pictures

Standard library only, so that `analysis` can import it on a machine without torch. Callers therefore parse the YAML.
"""

from grpovi_lightning.run_record.layout import (
    ARMS_FOLDER,
    CHECKPOINTS_FOLDER,
    LOG_FILE,
    MODEL_FOLDER,
    PREPARE_FOLDER,
    REPORT_FOLDER,
    SCHEMA,
    STATUS_FILE,
    STUDY_FILE,
    RecordError,
    folder_seed,
    replace_file,
    run_folder,
)
from grpovi_lightning.run_record.pairing import FirstRollouts, first_rollouts
from grpovi_lightning.run_record.status import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    STATES,
    UNKNOWN,
    RunRecord,
    UnreadableError,
    read_status,
    require_status,
    settle_status,
    timestamp,
    write_status,
)
from grpovi_lightning.run_record.study import (
    Arm,
    Stage,
    StudyRecord,
    close_matches,
    kind,
    parse_seeds,
    parse_study,
    study_mapping,
)

__all__ = [
    "ARMS_FOLDER",
    "CHECKPOINTS_FOLDER",
    "FAILED",
    "FINISHED",
    "INTERRUPTED",
    "LOG_FILE",
    "MODEL_FOLDER",
    "PREPARE_FOLDER",
    "REPORT_FOLDER",
    "RUNNING",
    "SCHEMA",
    "STATES",
    "STATUS_FILE",
    "STUDY_FILE",
    "UNKNOWN",
    "Arm",
    "FirstRollouts",
    "RecordError",
    "RunRecord",
    "Stage",
    "StudyRecord",
    "UnreadableError",
    "close_matches",
    "first_rollouts",
    "folder_seed",
    "kind",
    "parse_seeds",
    "parse_study",
    "read_status",
    "replace_file",
    "require_status",
    "run_folder",
    "settle_status",
    "study_mapping",
    "timestamp",
    "write_status",
]

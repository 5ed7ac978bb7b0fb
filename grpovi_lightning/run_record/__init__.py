"""What a run and a study leave on disk, and how it is read back: the contract between running and `analysis`.

    <study>/study.yaml                 the study as resolved: a study file plus the contents of its config files
    <study>/choice.json                the best point of each arm on the tuning seeds, where the study has some
    <study>/looks.json                 the looks planned and made, where seeds are added until verdicts are decided
    <study>/prepare/<stage>/           what all arms share; a run each, or the files of the task
    <study>/arms/<arm>/seed_<k>/       a run: status.json, process.log, config.yaml, events, checkpoints/, model/,
                                       completions/, .scalars.parquet (what reports keep of the events)
                                       <arm> of a point of a grid: grpo@lr=0.0001,beta=0
    <study>/report/                    index.html, efficiency.csv, curves.csv, settings.csv, pictures

Standard library only, but for pyarrow in `completions`, so that `analysis` can import it on a machine without torch.
Callers therefore parse the YAML.
"""

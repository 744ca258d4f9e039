"""From an experiment file to a report and MLflow. A table of contents: what each stage does stands in pipeline/.

snakemake --cores all                                            the default experiment
snakemake --cores all --configfile pipeline/experiments/X.yaml   another one
snakemake --cores all --config results=DIR data=DIR device=cpu   how it is run: changes no number's name
snakemake --cores all --config fleet=true                        all trainings by a few processes that stay warm
snakemake --workflow-profile cluster/slurm                       on a cluster

What may not make a job run again (where files lie, the device) stands under `resources`, whose change Snakemake
ignores. A config.json is no input: its path holds the hash of what it says, and `train` writes it. Where jobs share a
process, Snakemake is told of a mark alone, and their stage knows what is done already. A search is a checkpoint: once
it is done, its winners are trained and judged like any job.
"""

from pipeline.run import Run

R = Run.of(config, workflow.overwrite_configfiles, not workflow.is_main_process)
TRAIN = (
    "exec python -m pipeline.train {params.configs} --experiment {resources.experiment} --data {resources.data}"
    " --device {resources.device} --threads {threads} --checkpoint-seconds {resources.checkpoint_seconds}"
    " --stop-with-parent $PPID 2> {log}"
)
FLEET = (
    "exec python -m pipeline.fleet --experiment {resources.experiment} --results {resources.results}"
    " --data {resources.data} --device {resources.device} --cpus {threads}"
    " --checkpoint-seconds {resources.checkpoint_seconds} --stop-with-parent $PPID --done {output} 2> {log}"
)
SEARCH = (
    "exec python -m pipeline.search {resources.experiment} --results {resources.results} --data {resources.data}"
    " --device {resources.device} --cpus {threads} --checkpoint-seconds {resources.checkpoint_seconds}"
    " --stop-with-parent $PPID 2> >(tee {log} >&2)"
)
EVALUATE = (
    "exec python -m pipeline.evaluate {resources.experiment} {params.configs} --data {resources.data}"
    " --device {resources.device} --threads {threads} 2> {log}"
)


wildcard_constraints:
    job="[^/]+",
    source="[^/]+",


localrules:
    all,
    data,
    collect,
    report,
    publish,


onstart:
    R.note_company()


onsuccess:
    print(R.farewell)


rule all:
    input:
        R.paths.report(R.name),
        R.paths.published(R.name),


rule data:
    output:
        R.paths.data("{source}"),
    log:
        R.paths.log("data", "{source}"),
    conda:
        "envs/environment.yaml"
    resources:
        data=R.data,
    params:
        arguments=R.data_arguments,
    shell:
        "exec python -m pipeline.data {params.arguments} --root {resources.data} --output {output} > {log} 2>&1"


rule train:
    input:
        data=ancient(R.data_of),
    output:
        model=R.paths.model("{job}"),
        training=R.paths.training("{job}"),
        decisions=R.paths.decisions("{job}"),
        weights=R.paths.weights("{job}"),
    log:
        R.paths.log("train", "{job}"),
    conda:
        "envs/environment.yaml"
    threads: 1
    resources:
        experiment=R.file,
        data=R.data,
        device=R.device,
        checkpoint_seconds=R.checkpoint_seconds,
    params:
        configs=R.paths.config("{job}"),
    shell:
        TRAIN


rule evaluate:
    input:
        model=R.paths.model("{job}"),
    output:
        evaluation=R.paths.evaluation("{job}", R.judging),
        validity=R.paths.validity("{job}", R.judging),
        trajectories=R.paths.trajectories("{job}", R.judging),
    log:
        R.paths.log("evaluate", "{job}"),
    conda:
        "envs/environment.yaml"
    threads: 1
    resources:
        experiment=R.file,
        data=R.data,
        device=R.device,
    params:
        configs=R.paths.config("{job}"),
    shell:
        EVALUATE


if R.experiment.search:  # its winners are jobs like any other, once they are known

    checkpoint search:
        input:
            data=ancient(R.data_of_search),
        output:
            R.found,
        log:
            R.paths.log("search", R.name),
        conda:
            "envs/environment.yaml"
        threads: workflow.resource_settings.cores or 1
        resources:
            experiment=R.file,
            results=R.paths.root,
            data=R.data,
            device=R.device,
            checkpoint_seconds=R.checkpoint_seconds,
        shell:
            SEARCH


if R.fleet:  # all jobs inside one allocation: `--config fleet=true`

    rule fleet:
        input:
            data=ancient(R.fleet.data),
        output:
            R.fleet.trained,
        log:
            R.paths.log("fleet", R.name),
        conda:
            "envs/environment.yaml"
        threads: workflow.resource_settings.cores or 1
        resources:
            experiment=R.file,
            results=R.paths.root,
            data=R.data,
            device=R.device,
            checkpoint_seconds=R.checkpoint_seconds,
        shell:
            FLEET


for batch in R.trainings:  # jobs that share a process: see pipeline/stacks.py

    rule:
        name:
            batch.train
        input:
            data=ancient(batch.data),
        output:
            batch.trained,
        log:
            R.paths.log("train", batch.name),
        priority: batch.priority
        conda:
            "envs/environment.yaml"
        threads: 1
        resources:
            experiment=R.file,
            data=R.data,
            device=R.device,
            checkpoint_seconds=R.checkpoint_seconds,
        params:
            configs=batch.configs,
        shell:
            f"{TRAIN} --done {{output}}"


for batch in R.batches:

    rule:
        name:
            batch.evaluate
        input:
            model=batch.trained,
        output:
            batch.judged,
        log:
            R.paths.log("evaluate", batch.name),
        conda:
            "envs/environment.yaml"
        threads: 1
        resources:
            experiment=R.file,
            data=R.data,
            device=R.device,
        params:
            configs=batch.configs,
        shell:
            f"{EVALUATE} --done {{output}}"


rule collect:
    input:
        R.rows,
        R.rows_of_winners(checkpoints),
    output:
        table=R.paths.table(R.name),
        curves=R.paths.curves(R.name),
        decisions=R.paths.decision_table(R.name),
        verdicts=R.paths.verdicts(R.name),
        trajectories=R.paths.trajectory_table(R.name),
        weights=R.paths.weight_paths(R.name),
        trials=R.trial_tables,
        collected=touch(R.collected),
    log:
        R.paths.log("collect", R.name),
    conda:
        "envs/environment.yaml"
    resources:
        experiment=R.file,
        results=R.paths.root,
    params:
        mix=R.mix_code,
    shell:
        "exec python -m pipeline.collect {resources.experiment} --results {resources.results} {params.mix} 2> {log}"


rule report:
    input:
        rules.collect.output,
        experiment=R.file,
    output:
        report(R.paths.report(R.name), category="report"),
        directory(R.paths.figures(R.name)),
    log:
        R.paths.log("report", R.name),
    conda:
        "envs/environment.yaml"
    resources:
        results=R.paths.root,
    shell:
        "exec python -m pipeline.report {input.experiment} --results {resources.results} 2> {log}"


rule publish:
    input:
        rules.report.output,
        experiment=R.file,
    output:
        R.paths.published(R.name),
    log:
        R.paths.log("publish", R.name),
    conda:
        "envs/environment.yaml"
    resources:
        results=R.paths.root,
    shell:
        "exec python -m pipeline.publish {input.experiment} --results {resources.results} 2> {log}"

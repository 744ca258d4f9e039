"""From an experiment file to a report and MLflow. A table of contents: what each stage does stands in pipeline/.

snakemake --cores all                                            the default experiment
snakemake --cores all --configfile pipeline/experiments/X.yaml   another one
snakemake --cores all --config results=DIR data=DIR device=cpu   how it is run: changes no number's name

What may not make a job run again (where files lie, the device) stands under `resources`, whose change Snakemake
ignores; a config.json is `ancient`, since its path holds the hash of what it says, and `describe` has no input, since a
rule that runs hides what `ancient` readers of its output have to do.
"""

from pipeline.run import Run

R = Run.of(config, workflow.overwrite_configfiles)
TRAIN = (
    "exec python -m pipeline.train {input.config} --data {resources.data}"
    " --device {resources.device} --threads {threads} --stop-with-parent $PPID 2> {log}"
)
EVALUATE = (
    "exec python -m pipeline.evaluate {resources.experiment} {input.config} --data {resources.data}"
    " --device {resources.device} --threads {threads} 2> {log}"
)


wildcard_constraints:
    job="[^/]+",
    source="[^/]+",


localrules:
    all,
    describe,
    data,
    collect,
    report,
    publish,


onsuccess:
    print(R.farewell)


rule all:
    input:
        R.paths.report(R.name),
        R.paths.published(R.name),


rule describe:
    output:
        R.configs,
    log:
        R.paths.log("describe", R.name),
    conda:
        "envs/environment.yaml"
    resources:
        experiment=R.file,
        results=R.paths.root,
    shell:
        "exec python -m pipeline.plan {resources.experiment} --write --results {resources.results} 2> {log}"


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
        config=ancient(R.paths.config("{job}")),
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
        data=R.data,
        device=R.device,
    shell:
        TRAIN


rule evaluate:
    input:
        config=ancient(R.paths.config("{job}")),
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
    shell:
        EVALUATE


for stack in R.stacks:  # jobs that differ in the seed alone, as one computation

    rule:
        name:
            stack.train
        input:
            config=ancient(stack.configs),
            data=ancient(stack.data),
        output:
            stack.trained,
        log:
            R.paths.log("train", stack.name),
        priority: stack.priority
        conda:
            "envs/environment.yaml"
        threads: 1
        resources:
            data=R.data,
            device=R.device,
        shell:
            TRAIN

    rule:
        name:
            stack.evaluate
        input:
            config=ancient(stack.configs),
            model=stack.models,
        output:
            stack.judged,
        log:
            R.paths.log("evaluate", stack.name),
        conda:
            "envs/environment.yaml"
        threads: 1
        resources:
            experiment=R.file,
            data=R.data,
            device=R.device,
        shell:
            EVALUATE

    workflow.ruleorder(stack.train, "train")
    workflow.ruleorder(stack.evaluate, "evaluate")


rule collect:
    input:
        R.rows,
    output:
        table=R.paths.table(R.name),
        curves=R.paths.curves(R.name),
        decisions=R.paths.decision_table(R.name),
        verdicts=R.paths.verdicts(R.name),
        trajectories=R.paths.trajectory_table(R.name),
        weights=R.paths.weight_paths(R.name),
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

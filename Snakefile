"""From an experiment file to a report and MLflow. A table of contents: what each stage does stands in pipeline/.

snakemake --cores all                                            the default experiment
snakemake --cores all --configfile pipeline/experiments/X.yaml   another one
snakemake --cores all --config results=DIR data=DIR device=cpu   how it is run: changes no number's name

What may not make a job run again (where files lie, the device) stands under `resources`, whose change Snakemake
ignores; a config.json is `ancient`, since its path holds the hash of what it says.
"""

from pipeline.run import Run

R = Run.of(config, workflow.overwrite_configfiles)


wildcard_constraints:
    job="[^/]+",


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
    input:
        ancient(R.file),
    output:
        R.configs,
    log:
        R.paths.log("describe", R.name),
    conda:
        "envs/environment.yaml"
    resources:
        results=R.paths.root,
    shell:
        "exec python -m pipeline.plan {input} --write --results {resources.results} 2> {log}"


rule data:
    input:
        ancient(R.file),
    output:
        R.paths.data(R.name),
    log:
        R.paths.log("data", R.name),
    conda:
        "envs/environment.yaml"
    resources:
        data=R.data,
    params:
        sets=R.data_sets,
    shell:
        "exec python -m pipeline.data {input} --data {resources.data} --output {output} 2> {log}"


rule train:
    input:
        config=ancient(R.paths.config("{job}")),
        data=ancient(R.paths.data(R.name)),
    output:
        model=R.paths.model("{job}"),
        training=R.paths.training("{job}"),
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
        "exec python -m pipeline.train {input.config} --data {resources.data}"
        " --device {resources.device} --threads {threads} 2>> {log}"


rule evaluate:
    input:
        experiment=ancient(R.file),
        config=ancient(R.paths.config("{job}")),
        model=R.paths.model("{job}"),
    output:
        R.paths.evaluation("{job}", R.judging),
    log:
        R.paths.log("evaluate", "{job}"),
    conda:
        "envs/environment.yaml"
    threads: 1
    resources:
        data=R.data,
        device=R.device,
    shell:
        "exec python -m pipeline.evaluate {input.experiment} {input.config} --data {resources.data}"
        " --device {resources.device} --threads {threads} 2> {log}"


rule collect:
    input:
        R.rows,
        experiment=ancient(R.file),
    output:
        table=R.paths.table(R.name),
        curves=R.paths.curves(R.name),
        weights=R.paths.weight_paths(R.name),
    log:
        R.paths.log("collect", R.name),
    conda:
        "envs/environment.yaml"
    resources:
        results=R.paths.root,
    params:
        mix=R.mix_code,
    shell:
        "exec python -m pipeline.collect {input.experiment} --results {resources.results} {params.mix} 2> {log}"


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

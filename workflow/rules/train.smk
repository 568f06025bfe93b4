# One segment of a training: from the checkpoint before, of this method or of the one that it
# starts from, to the checkpoint named by the output. With `exec` the shell does not end, upon
# SIGTERM, before the state is saved.
rule train:
    input:
        data=rules.prepare.output,
        init=predecessor,
    output:
        checkpoint=f"{RUN}/step{{step}}.safetensors",
        curve=f"{RUN}/step{{step}}.csv",
        record=f"{RUN}/step{{step}}.json",
    log:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/train{{step}}.log",
    benchmark:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/train{{step}}.tsv"
    conda:
        "../../environment.yml"
    threads: lambda wildcards: cell(wildcards).training.processes
    params:
        spec=spec("train", "dataset", "method", "seed", "step"),
        data=subpath(input[0], parent=True),
        init=lambda wildcards, input: ["--init", input.init] if input.init else [],
    shell:
        "exec python -P -m qcsbm train --spec {params.spec:q} --data {params.data:q} {params.init:q}"
        " --out {output.checkpoint:q} --curve {output.curve:q} --record {output.record:q}"
        " 2> {log:q}"


# A training that was interrupted goes on from its state, unless it is forced to run.
onstart:
    for job in workflow.dag.needrun_jobs():
        if (
            job.rule.name == rules.train.rule.name
            and workflow.dag.reason(job).forced
        ):
            state = Path(job.output.checkpoint).with_suffix(".state")
            shutil.rmtree(state, ignore_errors=True)

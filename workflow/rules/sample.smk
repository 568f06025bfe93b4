# A shard of the samples of a trained model, then all of them.
rule sample:
    input:
        data=rules.prepare.output.description,
        checkpoint=final_checkpoint,
    output:
        images=temp(f"{RUN}/{{sampler}}/shards/samples.{{scatteritem}}.npz"),
        record=temp(f"{RUN}/{{sampler}}/shards/samples.{{scatteritem}}.json"),
    log:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/{{sampler}}/sample.{{scatteritem}}.log",
    benchmark:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/{{sampler}}/sample.{{scatteritem}}.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("sample", "dataset", "method", "seed", "sampler"),
        data=subpath(input.data, parent=True),
    shell:
        "python -P -m qcsbm sample --spec {params.spec:q} --data {params.data:q}"
        " --checkpoint {input.checkpoint:q} --shard {wildcards.scatteritem}"
        " --out {output.images:q} --record {output.record:q} 2> {log:q}"


rule gather_samples:
    input:
        data=rules.prepare.output.description,
        images=gather.shards(rules.sample.output.images, allow_missing=True),
        records=gather.shards(rules.sample.output.record, allow_missing=True),
    output:
        images=f"{RUN}/{{sampler}}/samples.npy",
        record=f"{RUN}/{{sampler}}/sample.json",
    log:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/{{sampler}}/gather_samples.log",
    benchmark:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/{{sampler}}/gather_samples.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        spec=spec("sample", "dataset", "method", "seed", "sampler"),
        data=subpath(input.data, parent=True),
    shell:
        "python -P -m qcsbm gather_samples --spec {params.spec:q} --data {params.data:q}"
        " --shards {input.images:q} --records {input.records:q}"
        " --out {output.images:q} --record {output.record:q} 2> {log:q}"

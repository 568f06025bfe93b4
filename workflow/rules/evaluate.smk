rule reference_features:
    input:
        data=rules.prepare.output.description,
        images=f"{DATA}/{{split}}.npy",
        weights=lambda wildcards: extractor_weights(
            wildcards.dataset, wildcards.extractor
        ),
    output:
        f"{DATA}/features/{{extractor}}.{{precision}}.{{split}}.{{scatteritem}}.npz",
    log:
        f"{LOGS}/{{dataset}}/features.{{extractor}}.{{precision}}.{{split}}.{{scatteritem}}.log",
    benchmark:
        f"{LOGS}/{{dataset}}/features.{{extractor}}.{{precision}}.{{split}}.{{scatteritem}}.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("features", "extractor", "precision"),
        data=subpath(input.data, parent=True),
        weights=lambda wildcards, input: (
            ["--weights", input.weights] if input.weights else []
        ),
    shell:
        "python -P -m qcsbm features --spec {params.spec:q} --data {params.data:q} {params.weights:q}"
        " --images {input.images:q} --shard {wildcards.scatteritem}"
        " --out {output:q} 2> {log:q}"


rule sample_features:
    input:
        data=rules.prepare.output.description,
        images=rules.gather_samples.output.images,
        weights=lambda wildcards: extractor_weights(
            wildcards.dataset, wildcards.extractor
        ),
    output:
        f"{RUN}/{{sampler}}/features.{{extractor}}.{{precision}}.{{scatteritem}}.npz",
    log:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/{{sampler}}/features.{{extractor}}.{{precision}}.{{scatteritem}}.log",
    benchmark:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/{{sampler}}/features.{{extractor}}.{{precision}}.{{scatteritem}}.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("features", "extractor", "precision"),
        data=subpath(input.data, parent=True),
        weights=lambda wildcards, input: (
            ["--weights", input.weights] if input.weights else []
        ),
    shell:
        "python -P -m qcsbm features --spec {params.spec:q} --data {params.data:q} {params.weights:q}"
        " --images {input.images:q} --shard {wildcards.scatteritem} --out {output:q} 2> {log:q}"


rule quality:
    input:
        samples=sample_features,
        reference=reference_features,
        statistics=statistics,
    output:
        f"{RUN}/{{sampler}}/quality.json",
    log:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/{{sampler}}/quality.log",
    benchmark:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/{{sampler}}/quality.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("quality", "dataset", "method", "seed", "sampler"),
        statistics=lambda wildcards, input: (
            ["--statistics", input.statistics] if input.statistics else []
        ),
    shell:
        "python -P -m qcsbm quality --spec {params.spec:q} --samples {input.samples:q}"
        " --reference {input.reference:q} {params.statistics:q} --record {output:q} 2> {log:q}"


rule likelihood:
    input:
        data=rules.prepare.output.description,
        images=f"{DATA}/test.npy",
        checkpoint=final_checkpoint,
    output:
        bits=temp(f"{RUN}/shards/likelihood.{{scatteritem}}.npz"),
        record=temp(f"{RUN}/shards/likelihood.{{scatteritem}}.json"),
    log:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/likelihood.{{scatteritem}}.log",
    benchmark:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/likelihood.{{scatteritem}}.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("likelihood", "dataset", "method", "seed"),
        data=subpath(input.data, parent=True),
    shell:
        "python -P -m qcsbm likelihood --spec {params.spec:q} --data {params.data:q}"
        " --checkpoint {input.checkpoint:q} --shard {wildcards.scatteritem}"
        " --out {output.bits:q} --record {output.record:q} 2> {log:q}"


rule gather_likelihood:
    input:
        bits=gather.shards(rules.likelihood.output.bits, allow_missing=True),
        records=gather.shards(rules.likelihood.output.record, allow_missing=True),
    output:
        bits=f"{RUN}/likelihood.npy",
        record=f"{RUN}/likelihood.json",
    log:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/gather_likelihood.log",
    benchmark:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/gather_likelihood.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        spec=spec("likelihood", "dataset", "method", "seed"),
    shell:
        "python -P -m qcsbm gather_likelihood --spec {params.spec:q} --shards {input.bits:q}"
        " --records {input.records:q} --out {output.bits:q} --record {output.record:q} 2> {log:q}"


rule asymmetry:
    input:
        data=rules.prepare.output.description,
        images=f"{DATA}/test.npy",
        checkpoint=final_checkpoint,
    output:
        values=temp(f"{RUN}/shards/asymmetry.{{scatteritem}}.npz"),
        record=temp(f"{RUN}/shards/asymmetry.{{scatteritem}}.json"),
    log:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/asymmetry.{{scatteritem}}.log",
    benchmark:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/asymmetry.{{scatteritem}}.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("asymmetry", "dataset", "method", "seed"),
        data=subpath(input.data, parent=True),
    shell:
        "python -P -m qcsbm asymmetry --spec {params.spec:q} --data {params.data:q}"
        " --checkpoint {input.checkpoint:q} --shard {wildcards.scatteritem}"
        " --out {output.values:q} --record {output.record:q} 2> {log:q}"


rule gather_asymmetry:
    input:
        values=gather.shards(rules.asymmetry.output.values, allow_missing=True),
        records=gather.shards(rules.asymmetry.output.record, allow_missing=True),
    output:
        levels=f"{RUN}/asymmetry.csv",
        record=f"{RUN}/asymmetry.json",
    log:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/gather_asymmetry.log",
    benchmark:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/gather_asymmetry.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        spec=spec("asymmetry", "dataset", "method", "seed"),
    shell:
        "python -P -m qcsbm gather_asymmetry --spec {params.spec:q} --shards {input.values:q}"
        " --records {input.records:q} --levels {output.levels:q} --record {output.record:q}"
        " 2> {log:q}"


rule circulation:
    input:
        data=rules.prepare.output.description,
        images=f"{DATA}/test.npy",
        checkpoint=final_checkpoint,
    output:
        levels=f"{RUN}/circulation.csv",
        record=f"{RUN}/circulation.json",
    log:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/circulation.log",
    benchmark:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/circulation.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("circulation", "dataset", "method", "seed"),
        data=subpath(input.data, parent=True),
    shell:
        "python -P -m qcsbm circulation --spec {params.spec:q} --data {params.data:q}"
        " --checkpoint {input.checkpoint:q} --levels {output.levels:q} --record {output.record:q}"
        " 2> {log:q}"

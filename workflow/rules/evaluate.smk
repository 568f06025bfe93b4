rule reference_features:
    input:
        data=rules.prepare.output,
        weights=lambda wildcards: extractor_weights(
            wildcards.dataset, wildcards.extractor
        ),
    output:
        f"{DATA}/features/{{extractor}}.{{split}}.npz",
    log:
        f"{LOGS}/{{dataset}}/features.{{extractor}}.{{split}}.log",
    benchmark:
        f"{LOGS}/{{dataset}}/features.{{extractor}}.{{split}}.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("features", "extractor"),
        data=subpath(input[0], parent=True),
        weights=lambda wildcards, input: (
            ["--weights", input.weights] if input.weights else []
        ),
    shell:
        "python -m qcsbm features --spec {params.spec:q} --data {params.data:q} {params.weights:q}"
        " --images {params.data:q}/{wildcards.split}.npy --out {output:q} 2> {log:q}"


rule sample_features:
    input:
        data=rules.prepare.output,
        images=rules.sample.output.images,
        weights=lambda wildcards: extractor_weights(
            wildcards.dataset, wildcards.extractor
        ),
    output:
        f"{RUN}/{{sampler}}/features.{{extractor}}.npz",
    log:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/{{sampler}}/features.{{extractor}}.log",
    benchmark:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/{{sampler}}/features.{{extractor}}.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("features", "extractor"),
        data=subpath(input[0], parent=True),
        weights=lambda wildcards, input: (
            ["--weights", input.weights] if input.weights else []
        ),
    shell:
        "python -m qcsbm features --spec {params.spec:q} --data {params.data:q} {params.weights:q}"
        " --images {input.images:q} --out {output:q} 2> {log:q}"


rule quality:
    input:
        samples=sample_features,
        reference=reference_features,
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
    shell:
        "python -m qcsbm quality --spec {params.spec:q} --samples {input.samples:q}"
        " --reference {input.reference:q} --record {output:q} 2> {log:q}"


rule likelihood:
    input:
        data=rules.prepare.output,
        checkpoint=final_checkpoint,
    output:
        bits=f"{RUN}/likelihood.npy",
        record=f"{RUN}/likelihood.json",
    log:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/likelihood.log",
    benchmark:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/likelihood.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("likelihood", "dataset", "method", "seed"),
        data=subpath(input[0], parent=True),
    shell:
        "python -m qcsbm likelihood --spec {params.spec:q} --data {params.data:q}"
        " --checkpoint {input.checkpoint:q} --out {output.bits:q} --record {output.record:q}"
        " 2> {log:q}"


rule asymmetry:
    input:
        data=rules.prepare.output,
        checkpoint=final_checkpoint,
    output:
        levels=f"{RUN}/asymmetry.csv",
        record=f"{RUN}/asymmetry.json",
    log:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/asymmetry.log",
    benchmark:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/asymmetry.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("asymmetry", "dataset", "method", "seed"),
        data=subpath(input[0], parent=True),
    shell:
        "python -m qcsbm asymmetry --spec {params.spec:q} --data {params.data:q}"
        " --checkpoint {input.checkpoint:q} --levels {output.levels:q} --record {output.record:q}"
        " 2> {log:q}"

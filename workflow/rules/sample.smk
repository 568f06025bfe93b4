rule sample:
    input:
        data=rules.prepare.output,
        checkpoint=final_checkpoint,
    output:
        images=f"{RUN}/{{sampler}}/samples.npy",
        record=f"{RUN}/{{sampler}}/sample.json",
    log:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/{{sampler}}/sample.log",
    benchmark:
        f"{LOGS}/{{dataset}}/{{method}}/seed{{seed}}/{{sampler}}/sample.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("sample", "dataset", "method", "seed", "sampler"),
        data=subpath(input[0], parent=True),
    shell:
        "python -m qcsbm sample --spec {params.spec:q} --data {params.data:q}"
        " --checkpoint {input.checkpoint:q} --out {output.images:q} --record {output.record:q}"
        " 2> {log:q}"

# What was prepared stays valid where the files that it was made from are gone.
for dataset, configured in EXPERIMENT.datasets.items():
    prepared = raw.prepared(description(dataset))
    if workflow.is_main_process and prepared and not raw.fingerprint(configured.data):
        logger.warning(
            f"{dataset}: found no files in {raw.folder(configured.data)}, expected those that it "
            "was prepared from; what was prepared is kept"
        )


rule prepare:
    output:
        description=f"{DATA}/data.json",
        arrays=expand(
            f"{DATA}/{{array}}.npy",
            array=["train", "test", "train_labels", "test_labels"],
            allow_missing=True,
        ),
    log:
        f"{LOGS}/{{dataset}}/prepare.log",
    benchmark:
        f"{LOGS}/{{dataset}}/prepare.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=lambda wildcards: specification.prepare(
            EXPERIMENT, wildcards.dataset, description(wildcards.dataset)
        ).text(),
        folder=subpath(output[0], parent=True),
    shell:
        "python -P -m qcsbm prepare --spec {params.spec:q} --out {params.folder:q} 2> {log:q}"


rule classifier:
    input:
        rules.prepare.output,
    output:
        weights=f"{DATA}/classifier.safetensors",
        record=f"{DATA}/classifier.json",
    log:
        f"{LOGS}/{{dataset}}/classifier.log",
    benchmark:
        f"{LOGS}/{{dataset}}/classifier.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("classifier", "dataset"),
        data=subpath(input[0], parent=True),
    shell:
        "python -P -m qcsbm classifier --spec {params.spec:q} --data {params.data:q}"
        " --out {output.weights:q} --record {output.record:q} 2> {log:q}"

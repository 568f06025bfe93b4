# All pictures of the trained models of a dataset: one job, since drawing takes less time than the
# start of a process.
rule figures:
    input:
        data=rules.prepare.output,
        records=picture_records,
        files=drawn_files,
    output:
        [
            report(
                f"{FIGURES}/{picture}.png",
                caption=f"../report/{picture}.rst",
                category="Figures",
                subcategory="{dataset}",
                labels={"picture": picture},
            )
            for picture in PICTURES
        ],
        [
            report(
                f"{FIGURES}/figure3_{sampler}.png",
                caption="../report/figure3.rst",
                category="Figures",
                subcategory="{dataset}",
                labels={"picture": f"Figure 3 ({sampler})"},
            )
            for sampler in EXPERIMENT.samplers
        ],
        svg=[f"{FIGURES}/{picture}.svg" for picture in [*PICTURES, *SAMPLES]],
    log:
        f"{LOGS}/{{dataset}}/figures.log",
    benchmark:
        f"{LOGS}/{{dataset}}/figures.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("figures", "dataset"),
        data=subpath(input[0], parent=True),
        folder=subpath(output[0], parent=True),
    shell:
        "python -P -m qcsbm figures --spec {params.spec:q} --data {params.data:q}"
        " --records {input.records:q} --out {params.folder:q} 2> {log:q}"

# Pictures of the trained models, a folder per dataset.
rule figure3:
    input:
        data=rules.prepare.output,
        records=first_samples("sample.json"),
        samples=first_samples("samples.npy"),
    output:
        png=report(
            f"{FIGURES}/figure3_{{sampler}}.png",
            caption="../report/figure3.rst",
            category="Figures",
            subcategory="{dataset}",
            labels={"picture": "Figure 3 ({sampler})"},
        ),
        svg=f"{FIGURES}/figure3_{{sampler}}.svg",
    log:
        f"{LOGS}/{{dataset}}/figure3_{{sampler}}.log",
    benchmark:
        f"{LOGS}/{{dataset}}/figure3_{{sampler}}.tsv"
    conda:
        "../../environment.yml"
    params:
        spec=spec("figure3", "dataset"),
        data=subpath(input[0], parent=True),
        figure=subpath(output.png, strip_suffix=".png"),
    shell:
        "python -m qcsbm figure3 --spec {params.spec:q} --data {params.data:q}"
        " --records {input.records:q} --out {params.figure:q} 2> {log:q}"


rule figure:
    input:
        records=picture_records,
        csv=picture_csv,
    output:
        png=report(
            f"{FIGURES}/{{picture}}.png",
            caption="../report/figure.rst",
            category="Figures",
            subcategory="{dataset}",
            labels={"picture": "{picture}"},
        ),
        svg=f"{FIGURES}/{{picture}}.svg",
    log:
        f"{LOGS}/{{dataset}}/{{picture}}.log",
    benchmark:
        f"{LOGS}/{{dataset}}/{{picture}}.tsv"
    wildcard_constraints:
        picture="|".join(PICTURES),
    conda:
        "../../environment.yml"
    params:
        spec=spec("figure", "dataset", "picture"),
        figure=subpath(output.png, strip_suffix=".png"),
    shell:
        "python -m qcsbm figure --spec {params.spec:q} --records {input.records:q}"
        " --out {params.figure:q} 2> {log:q}"

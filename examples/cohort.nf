// A cohort in parts: `nextflow run cohort.nf --table $PWD/cases.csv --model $PWD/bundle_folder --out $PWD`. Run it again to go on.
params.shards = 8

process shard {
    input: val i
    output: val i
    script: "medcam cohort ${params.table} --model ${params.model} --shard ${i}/${params.shards} --out ${params.out}/shards/${i} || [ \$? -eq 1 ]"
}

process merged {
    input: val all
    script: "medcam merge ${params.out}/shards/* --out ${params.out}/results || [ \$? -eq 1 ]"
}

workflow { Channel.of(1..params.shards) | shard | collect | merged }

"""All checks on a CUDA device that is available for minutes: `build`, `run`, `receive`.

In: packages that carry weights, `$RDFIA_ASSETS`. Out: one archive of records, which `receive` puts
under reports/verified/cuda. `parts` makes and unpacks the files that travel. `steps` runs the
checks, the most important first, each in a process of its own: `parity`, `checks`, `out_of_memory`
and `gan_runs`. `archive` packs and receives the records.
"""

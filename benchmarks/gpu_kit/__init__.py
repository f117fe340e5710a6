"""What is done when a CUDA device is lent for minutes: `build` the files that travel, `run` all
checks, `receive`.

In: packages that carry weights, `$RDFIA_ASSETS`. Out: one archive of records, which `receive` puts
under reports/verified/cuda. `parts` makes and unpacks the files, `steps` runs the checks in order
of worth, each in a process of its own: `parity`, `checks`, `out_of_memory` and `gan_runs` are what
some of those do. `archive` packs and receives.
"""

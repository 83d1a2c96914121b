"""`python -m futurel1.cli`, for launchers such as torchrun."""

from futurel1.cli.main import main

main()

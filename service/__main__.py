"""`python -m service` is `recurra`, for programs that start it as a module, such as torchrun."""

from service.cli import main

main()

"""How fast is taskloom, compared with its peers and with the least that two processes need?

``python -m benchmarks`` from the root of the repository; ``benchmarks/README.md`` explains.
"""

"""What `bench_serve.py` is made of: tasks, applications, clients, and the check of every answer."""

# Of Puma. Each worker has one thread: what it shares, it shares with other processes.
preload_app!
threads 1, 1
worker_timeout 120
worker_shutdown_timeout 2

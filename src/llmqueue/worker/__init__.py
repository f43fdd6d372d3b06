"""The worker: claims tasks, calls the backend, settles the results. daemon.serve() names its loops."""

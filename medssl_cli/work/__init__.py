"""One way to map work over items: in supervised child processes here, or on a Dask cluster."""

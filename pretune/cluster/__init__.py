"""All that imports Ray in the driver: Tune, jobs, joining a cluster."""

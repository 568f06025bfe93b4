"""What every job stands on: files, failures, records of origin, seeds, devices and shards."""

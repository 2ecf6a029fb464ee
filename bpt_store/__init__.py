"""bpt_store remembers: customers, datasets, jobs, prompt sets in PostgreSQL; archives and shards in object storage."""

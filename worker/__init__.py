"""worker labours: Celery hears the doorbell, a supervisor without torch claims a job, one exec'd process does it."""

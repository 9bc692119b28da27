"""Jobs that speak the contract and do nothing else: for the tests of what runs jobs."""

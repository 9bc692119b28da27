"""The reference server of the collection API: labeled pictures in picsets."""

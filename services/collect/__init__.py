"""The reference server of the collection API: labelled pictures in picsets."""

"""Who belongs together and who is here: the cluster key, certificates, identities, discovery."""

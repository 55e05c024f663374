"""Parcel help, the quickstart: customer support of a small shop, with an exactly known gold reward."""

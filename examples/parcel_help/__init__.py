"""Parcel help, the quickstart: a small shop's customer help whose answers have an exact gold reward."""

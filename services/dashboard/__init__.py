"""The live page of a run; reads its folder and asks its processes, and changes nothing."""

"""Ultralytics' detectors: ``YOLO`` and ``RTDETR`` objects, their training and their checkpoints.

Importing this only registers them. Ultralytics itself is optional, and is imported when one of its objects arrives.
"""

from surgeon.yolo import joining as joining

# The chat function as a container image, for an agent whose packages pass the 250 MB of a zip file: README.md, "As a
# container image".
# Pinned by the digest of the tag's index, for both processors; Dependabot proposes newer ones.
FROM public.ecr.aws/lambda/python:3.13@sha256:a2599a8364d1b56a6b39fcf83116fb33a69c5a0dfabdcbff618c9fe50bc00eab

# A layer of its own, which an edit of the agent leaves as it is. pip compiles what it installs; the lock is complete.
COPY requirements.txt ${LAMBDA_TASK_ROOT}/
RUN python -m pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
        --target "${LAMBDA_TASK_ROOT}" -r "${LAMBDA_TASK_ROOT}/requirements.txt"

COPY handlers/ ${LAMBDA_TASK_ROOT}/handlers/
COPY memory/ ${LAMBDA_TASK_ROOT}/memory/
RUN python -m compileall -q "${LAMBDA_TASK_ROOT}/handlers" "${LAMBDA_TASK_ROOT}/memory"

CMD ["handlers.chat.handler"]

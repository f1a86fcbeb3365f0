#!/usr/bin/env bash
# Accounts, roles, workflow and schedule of a GKE cluster with Workload Identity. It is safe to run it again. It needs gcloud
# with the right to grant roles, and before or after `make deploy` of your overlay of k8s/cloud, with the names below in it.
#
#   PROJECT=... LOCATION=europe-west4 CLUSTER=... BUCKET=... k8s/cloud/install.sh
set -euo pipefail
cd "$(dirname "$0")"
: "${PROJECT:?the project of the cluster}" "${LOCATION:?of the cluster: a region, or a zone}"
: "${CLUSTER:?its name}" "${BUCKET:?of THAW_STORAGE_URI, without gs://}"
NAMESPACE=${NAMESPACE:-default} PREFIX=${PREFIX:-runs} SCHEDULE=${SCHEDULE:-0 3 * * 1} SLOT_CHARACTERS=${SLOT_CHARACTERS:-10}
REGION=${REGION:-$(echo "$LOCATION" | cut -d - -f 1,2)}

account() { echo "$1@$PROJECT.iam.gserviceaccount.com"; }
make_account() { # name, what for
    gcloud iam service-accounts describe "$(account "$1")" --project "$PROJECT" >/dev/null 2>&1 ||
        gcloud iam service-accounts create "$1" --project "$PROJECT" --display-name "$2"
}
grant() { # account, role in the project
    gcloud projects add-iam-policy-binding "$PROJECT" --condition None --role "$2" --member "serviceAccount:$(account "$1")" >/dev/null
}
grant_bucket() { # account, role in the bucket
    gcloud storage buckets add-iam-policy-binding "gs://$BUCKET" --role "$2" --member "serviceAccount:$(account "$1")" >/dev/null
}

gcloud services enable container.googleapis.com workflows.googleapis.com cloudscheduler.googleapis.com --project "$PROJECT"

# The run: reads and writes its bucket, as the Kubernetes account `thaw` of one namespace.
make_account thaw-run "Thaw: a run"
grant_bucket thaw-run roles/storage.objectUser
gcloud iam service-accounts add-iam-policy-binding "$(account thaw-run)" --project "$PROJECT" \
    --role roles/iam.workloadIdentityUser --member "serviceAccount:$PROJECT.svc.id.goog[$NAMESPACE/thaw]" >/dev/null

# The workflow: finds the cluster and reads the record. rbac.yaml says what it may do in the cluster.
make_account thaw-workflow "Thaw: the workflow that starts runs"
grant thaw-workflow roles/container.clusterViewer
grant thaw-workflow roles/logging.logWriter
grant_bucket thaw-workflow roles/storage.objectViewer
gcloud workflows deploy thaw --project "$PROJECT" --location "$REGION" --source workflow.yaml \
    --service-account "$(account thaw-workflow)"

# The schedule: starts the workflow, and nothing else.
make_account thaw-scheduler "Thaw: the schedule"
grant thaw-scheduler roles/workflows.invoker
argument=$(printf '{"cluster":"%s","location":"%s","namespace":"%s","bucket":"%s","prefix":"%s","slot_characters":%d}' \
    "$CLUSTER" "$LOCATION" "$NAMESPACE" "$BUCKET" "$PREFIX" "$SLOT_CHARACTERS")
verb=create
gcloud scheduler jobs describe thaw --project "$PROJECT" --location "$REGION" >/dev/null 2>&1 && verb=update
gcloud scheduler jobs "$verb" http thaw --project "$PROJECT" --location "$REGION" --schedule "$SCHEDULE" --time-zone Etc/UTC \
    --uri "https://workflowexecutions.googleapis.com/v1/projects/$PROJECT/locations/$REGION/workflows/thaw/executions" \
    --message-body "{\"argument\":\"${argument//\"/\\\"}\"}" --oauth-service-account-email "$(account thaw-scheduler)"

"""A run as a task of Airflow: a pod, whose exit code decides whether Airflow tries again, and a task with the outcome.

Written for the provider cncf.kubernetes 10.25 with Airflow 3.3. Airflow counts every retry, 42 and 45 too.
"""

from datetime import datetime, timedelta

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException

HOPELESS = {2, 3, 4, 5, 6, 7}
"""What a retry cannot help: docs/reference/exit-codes.md."""

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"labels": {"app.kubernetes.io/name": "thaw"}},  # the policies of k8s/base/shared select it
    "spec": {
        "serviceAccountName": "thaw",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # variables of a Service named thaw-... would look like settings
        "terminationGracePeriodSeconds": 30,
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "base",
                "image": "registry.example.com/thaw:0.2.0",
                "env": [
                    {"name": "THAW_STORAGE_URI", "value": "gs://thaw.example.com/runs"},
                    {"name": "THAW_DEVICE", "value": "gpu"},
                    {"name": "THAW_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
                    {"name": "THAW_WORK_BYTES", "value": "10Gi"},  # the limit of the volume `work`
                    {"name": "THAW_TERMINATION_LOG", "value": "/dev/termination-log"},
                ],
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                },
                "volumeMounts": [{"name": "work", "mountPath": "/work"}],
            }
        ],
        "volumes": [{"name": "work", "emptyDir": {"sizeLimit": "10Gi"}}],
    },
}

# A run for each date of the schedule: a retry, and the same date cleared by a person, continue it or find it complete.
RUN = {"THAW_RUN_ID": "weekly-{{ ds }}", "THAW_JOB_UID": "{{ dag.dag_id }}-{{ ds }}"}


class Train(KubernetesPodOperator):
    """Fails for good where a retry cannot help. The error has the termination message: reason, last commit, hint."""

    def cleanup(self, pod, remote_pod, **more):
        try:
            super().cleanup(pod, remote_pod, **more)
        except AirflowException as error:
            statuses = (remote_pod.status.container_statuses or []) if remote_pod else []
            codes = [it.state.terminated.exit_code for it in statuses if it.state.terminated and it.name == "base"]
            if HOPELESS & set(codes):
                raise AirflowFailException(f"exit code {codes[0]}: {error}") from error
            raise


with DAG("thaw", schedule="0 3 * * 1", start_date=datetime(2026, 1, 1), catchup=False, max_active_runs=1):
    train = Train(
        task_id="train",
        pod_template_dict=POD,
        env_vars=RUN,
        container_resources={
            "requests": {"cpu": "6", "memory": "24Gi", "ephemeral-storage": "12Gi"},
            "limits": {"memory": "24Gi", "ephemeral-storage": "12Gi", "nvidia.com/gpu": "1"},
        },
        retries=20,
        retry_delay=timedelta(seconds=10),
        startup_timeout_seconds=1800,  # a node with a GPU may have to be made
        on_finish_action="delete_succeeded_pod",
    )
    # What later tasks read: {{ ti.xcom_pull("outcome")["outcome"]["test_accuracy"] }}
    outcome = KubernetesPodOperator(
        task_id="outcome",
        pod_template_dict=POD,
        env_vars=RUN,
        cmds=["sh", "-c", "python -m job status --json > /airflow/xcom/return.json"],
        do_xcom_push=True,
    )
    train >> outcome
